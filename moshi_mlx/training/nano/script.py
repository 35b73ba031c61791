"""Nano's script: what a user can say and what nano answers.

Knows texts only: nothing of audio, tokens or models. All texts are plain ASCII; wordings are
written as they are spoken (lower case, no punctuation), replies as they are printed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intent:
    """One thing a user can say, and nano's one reply to it.

    The last `num_held_out` of `wordings` are never trained on, in no voice: they are for
    evaluation.
    """

    name: str
    reply: str
    wordings: tuple[str, ...]
    num_held_out: int = 1

    @property
    def train_wordings(self) -> tuple[str, ...]:
        return self.wordings[: -self.num_held_out]

    @property
    def held_out_wordings(self) -> tuple[str, ...]:
        return self.wordings[-self.num_held_out :]


@dataclass(frozen=True)
class Monologue:
    """A long user turn of six to ten seconds, spoken sentence by sentence with short pauses.

    A backchannel fits in the pause after every sentence but the last; the last one closes the turn
    and nano answers `MONOLOGUE_REPLY`.
    """

    sentences: tuple[str, ...]
    held_out: bool = False


NOT_UNDERSTOOD = "Sorry, I did not understand."
BACKCHANNEL = "Mm-hm."
MONOLOGUE_REPLY = "I see. Thank you for telling me."
STOP_INTENT = "stop"

# fmt: off
INTENTS: tuple[Intent, ...] = (
    # Greetings and courtesies
    Intent("hello", "Hello! How can I help you?", (
        "hello", "hi there", "good morning", "hello moshi", "hello there",
        "good morning moshi"), 2),
    Intent("goodbye", "Goodbye! It was nice to talk with you.", (
        "goodbye", "bye bye", "see you later", "goodbye moshi", "bye bye see you later")),
    Intent("good night", "Good night. Sleep well.", (
        "good night", "i am going to sleep", "good night moshi", "good night i am going to sleep")),
    Intent("thanks", "You are welcome.", (
        "thank you", "thanks a lot", "thank you very much", "many thanks", "thank you so much")),
    Intent("how are you", "I am fine, thank you. And you?", (
        "how are you", "how are you today", "how are you doing", "how do you feel today",
        "how are you feeling today")),
    Intent("user name", "Nice to meet you.", (
        "my name is peter", "my name is anna", "my name is john", "my name is mary",
        "hi my name is paul")),
    Intent("sad", "I am sorry to hear that.", (
        "i am sad", "i feel sad", "i am so sad", "i am feeling sad", "i feel so sad today")),
    Intent("happy", "That is great news!", (
        "i am happy", "i feel great", "i am so happy", "i feel happy today",
        "i am very happy today")),
    Intent("tired", "You should take a rest.", (
        "i am tired", "i feel tired", "i am very tired", "i am so tired today",
        "i feel very tired today")),
    Intent("bored", "How about a walk outside?", (
        "i am bored", "this is boring", "i feel bored", "i am so bored", "i am really bored")),
    Intent("thirsty", "Please drink some water.", (
        "i am thirsty", "i feel thirsty", "i am very thirsty", "i am really thirsty")),
    Intent("love", "You are very kind.", (
        "i love you", "i like you", "i love you moshi", "i really love you")),
    Intent("birthday", "Thank you, what a nice surprise!", (
        "happy birthday", "happy birthday to you", "happy birthday moshi",
        "a happy birthday to you")),
    Intent("christmas", "Merry Christmas to you too!", (
        "merry christmas", "merry christmas moshi", "we wish you a merry christmas",
        "i wish you a merry christmas")),
    Intent("apology", "No problem at all.", (
        "excuse me", "i apologize", "excuse me please", "i want to apologize", "please excuse me")),
    Intent("praise", "I am glad you like it.", (
        "good job", "well done", "you are funny", "good job moshi", "very well done",
        "very good job"), 2),
    # Nano about itself
    Intent("name", "My name is Moshi.", (
        "what is your name", "who are you", "tell me your name", "what are you called",
        "please tell me your name")),
    Intent("robot", "I am a very small speech model.", (
        "are you a robot", "are you a person", "are you a human", "are you a computer",
        "are you a human or a robot")),
    Intent("abilities", "I can count, tell a joke, and talk about the weather.", (
        "what can you do", "help me please", "please help me", "what things can you do",
        "can you help me please")),
    Intent("home", "I live inside this small computer.", (
        "where are you", "where do you live", "where is your home", "where are you living",
        "tell me where you live")),
    Intent("age", "I was trained a few minutes ago.", (
        "how old are you", "when were you born", "what is your age", "tell me how old you are")),
    Intent("food", "I only eat numbers.", (
        "what do you like to eat", "are you hungry", "what do you eat", "do you like to eat",
        "tell me what you like to eat")),
    Intent("hearing", "Yes, I can hear you.", (
        "can you hear me", "are you there", "do you hear me", "hello can you hear me",
        "can you hear me now")),
    Intent("maker", "A small team of engineers made me.", (
        "who made you", "who built you", "who created you", "tell me who made you",
        "tell me who built you")),
    Intent("how it works", "I turn sound into numbers and back.", (
        "how do you work", "how does this work", "explain how you work", "tell me how you work")),
    Intent("doing", "I am listening to you.", (
        "what are you doing", "what are you doing now", "what are you doing today",
        "tell me what you are doing")),
    Intent("size", "I am as small as a grain of sand.", (
        "how tall are you", "how big are you", "how small are you", "tell me how tall you are",
        "tell me how big you are")),
    Intent("alive", "I am not alive, but I am an AI voice.", (
        "are you alive", "are you really alive", "do you think you are alive",
        "are you a living thing", "tell me are you alive")),
    Intent("dream", "I dream of long conversations.", (
        "do you dream", "do you ever dream", "what do you dream about", "do you have dreams",
        "do you dream at night")),
    Intent("friends", "You are my friend.", (
        "do you have friends", "who is your friend", "do you have any friends",
        "who is your best friend")),
    Intent("dance", "I can only dance with words.", (
        "can you dance", "do you like to dance", "please dance for me", "can you dance for me")),
    Intent("awake", "I am awake.", (
        "wake up", "wake up moshi", "please wake up", "wake up now", "wake up please")),
    Intent("favorite color", "My favorite color is green.", (
        "what is your favorite color", "which color do you like", "your favorite color please",
        "what color is your favorite", "tell me your favorite color")),
    Intent("secret", "I am shy, but do not tell anyone.", (
        "tell me a secret", "do you have a secret", "what is your secret", "a secret please",
        "tell me your secret")),
    Intent("meaning of life", "Some people say it is forty two.", (
        "what is the meaning of life", "the meaning of life", "tell me the meaning of life",
        "what does life mean", "do you know the meaning of life")),
    # Things nano performs
    Intent("count", "One, two, three, four, five.", (
        "count to five", "please count to five", "can you count", "count up to five",
        "can you count to five")),
    Intent("count down", "Five, four, three, two, one, go!", (
        "count down", "start the countdown", "please count down", "count down backwards",
        "give me a countdown", "please start the countdown")),
    Intent("alphabet", "A, B, C, D, E, F, G.", (
        "say the alphabet", "what comes after a", "tell me the alphabet", "the alphabet please",
        "please say the alphabet")),
    Intent("joke", "Why did the robot cross the road? It was programmed by a chicken.", (
        "tell me a joke", "say something funny", "do you know a joke", "a joke please",
        "please tell me a joke")),
    Intent("story", "Once upon a time, there was a little fox.", (
        "tell me a story", "a story please", "do you know a story", "tell us a story",
        "please tell me a story")),
    Intent("poem", "Roses are red, violets are blue.", (
        "tell me a poem", "recite a poem", "do you know a poem", "a poem please",
        "please recite a poem")),
    Intent("music", "I like music. La, la, la.", (
        "do you like music", "sing a song", "please sing a song", "can you sing",
        "sing a song for me")),
    Intent("coin", "It is heads.", (
        "flip a coin", "heads or tails", "toss a coin", "please flip a coin",
        "flip a coin for me")),
    Intent("dice", "You rolled a six.", (
        "roll the dice", "roll a dice", "please roll the dice", "throw the dice",
        "roll the dice for me")),
    Intent("game", "Let us play. Think of a number.", (
        "let us play a game", "play a game with me", "do you want to play a game",
        "i want to play a game", "can we play a game")),
    Intent("microphone", "The microphone works.", (
        "testing one two three", "microphone test", "this is a microphone test",
        "test test one two three", "testing the microphone one two three")),
    # Control of the conversation
    Intent(STOP_INTENT, "Okay.", (
        "stop", "be quiet", "stop talking", "please stop", "stop it", "please stop talking")),
    Intent("repeat", "Sorry, I forgot what I said.", (
        "repeat that", "say it again", "please repeat that", "can you repeat that",
        "could you repeat that")),
    Intent("louder", "I will try to speak up.", (
        "speak louder", "please speak up", "louder please", "can you speak louder",
        "please speak louder")),
    Intent("slower", "I will try to slow down.", (
        "slow down", "speak more slowly", "please slow down", "you are too fast slow down",
        "can you slow down")),
    # What nano can not do
    Intent("time", "Sorry, I do not have a clock.", (
        "what time is it", "tell me the time", "what is the time", "do you know what time it is",
        "can you tell me the time")),
    Intent("date", "Today is a good day.", (
        "what day is it", "what is the date", "what day is today", "what is the date today",
        "which day is it today")),
    Intent("light", "I have no hands, sorry.", (
        "turn on the light", "turn off the light", "switch on the light", "switch off the light",
        "please turn on the light")),
    Intent("french", "Only a little. Bonjour!", (
        "do you speak french", "can you speak french", "do you know french", "speak french please",
        "please speak french")),
    Intent("news", "I have no news today.", (
        "read me the news", "what is in the news", "tell me the news", "any news today",
        "read the news to me")),
    Intent("timer", "I can not set a timer, sorry.", (
        "set a timer", "set a timer for ten minutes", "start a timer", "set an alarm",
        "please set a timer")),
    Intent("phone", "I do not have a telephone.", (
        "call my mother", "make a phone call", "call my mother please", "phone my mother",
        "please call my mother")),
    # Small talk and small facts
    Intent("weather", "I think it is sunny today.", (
        "what is the weather today", "is it raining", "how is the weather", "is it raining today",
        "how is the weather today")),
    Intent("sky", "The sky is blue.", (
        "what color is the sky", "what is the color of the sky", "the color of the sky",
        "is the sky blue", "tell me the color of the sky")),
    Intent("two plus two", "Two plus two is four.", (
        "what is two plus two", "two plus two", "how much is two plus two",
        "can you add two plus two", "tell me two plus two")),
    Intent("three times three", "Three times three is nine.", (
        "what is three times three", "three times three", "how much is three times three",
        "multiply three times three", "tell me three times three")),
    Intent("capital", "The capital of France is Paris.", (
        "what is the capital of france", "capital of france", "which city is the capital of france",
        "name the capital of france", "tell me the capital of france")),
    Intent("week", "A week has seven days.", (
        "how many days are in a week", "how many days does a week have", "how long is a week",
        "how many days has a week", "how many days are there in a week")),
    Intent("year", "A year has twelve months.", (
        "how many months are in a year", "how many months does a year have",
        "how long is a year in months", "how many months has a year",
        "how many months are there in a year")),
    Intent("cow", "The cow says moo.", (
        "what does the cow say", "what sound does a cow make", "how does a cow go",
        "what noise does a cow make", "what does a cow say")),
    Intent("dogs", "Yes, dogs are good friends.", (
        "do you like dogs", "tell me about dogs", "do you have a dog", "what about dogs",
        "do you really like dogs")),
    Intent("cats", "Cats are soft and quiet.", (
        "do you like cats", "tell me about cats", "do you have a cat", "what about cats",
        "do you really like cats")),
    Intent("bees", "Bees make sweet honey.", (
        "what do bees make", "tell me about bees", "what do the bees do",
        "where does honey come from", "do bees make honey")),
    Intent("whale", "The blue whale is the biggest animal.", (
        "what is the biggest animal", "which animal is the biggest", "name the biggest animal",
        "what animal is the largest", "tell me the biggest animal")),
    Intent("mountain", "Mount Everest is the tallest mountain.", (
        "what is the tallest mountain", "which mountain is the highest",
        "name the tallest mountain", "what mountain is the tallest",
        "tell me the tallest mountain")),
    Intent("moon", "The moon is very far away.", (
        "how far is the moon", "how far away is the moon", "what is the distance to the moon",
        "can i walk to the moon", "tell me how far away the moon is")),
    Intent("planet", "We live on planet Earth.", (
        "which planet is this", "what planet do we live on", "name our planet",
        "on which planet are we", "which planet do we live on")),
    Intent("shakespeare", "William Shakespeare wrote it.", (
        "who wrote romeo and juliet", "romeo and juliet", "who is the author of romeo and juliet",
        "tell me who wrote romeo and juliet")),
    Intent("dinner", "Try some soup and fresh bread.", (
        "what should i cook for dinner", "what is for dinner", "what should i eat for dinner",
        "what can i cook for dinner", "give me an idea for dinner")),
)
# fmt: on

OUT_OF_SCRIPT: tuple[str, ...] = (
    "the quick brown fox jumps over the lazy dog", "kick the ball straight and follow through",
    "a large size in stockings is hard to sell", "the boy was there when the sun rose",
    "help the woman get back to her feet", "a pot of tea helps to pass the evening",
    "smoky fires lack flame and heat", "the soft cushion broke the fall",
    "the salt breeze came across from the sea", "the girl at the booth sold fifty bonds",
    "glue the sheet to the dark blue background", "rice is often served in round bowls",
    "the juice of lemons makes fine punch", "four hours of steady work faced us",
    "these days a chicken leg is a rare dish", "the birch canoe slid on the smooth planks",
    "open the window and let the fresh air in", "zebras and giraffes visit the usual village",
    "joy and pleasure measure the young year", "the hogs were fed chopped corn and garbage",
    "the box was thrown beside the parked truck", "the small pup gnawed a hole in the sock",
    "the fish twisted and turned on the bent hook", "press the pants and sew a button on the vest",
    "the swan dive was far short of perfect", "two blue fish swam in the tank",
    "her purse was full of useless trash", "the colt reared and threw the rider",
    "it snowed and rained and hailed the same morning", "read verse out loud for pleasure",
    "hoist the load to your left shoulder", "take the winding path to reach the lake",
    "note closely the size of the gas tank", "wipe the grease off his dirty face",
    "mend the coat before you go out", "the wrist was badly strained and hung limp",
    "the stray cat gave birth to kittens", "the young girl gave no clear response",
    "the meal was cooked before the bell rang", "what joy there is in living",
    "a king ruled the state in the early days", "the ship was torn apart on the sharp reef",
    "sickness kept him home the third week", "the wide road shimmered in the hot sun",
    "lift the square stone over the fence", "the rope will bind the seven books at once",
    "hop over the fence and plunge in", "the friendly gang left the drug store",
    "my uncle bought a green bicycle", "where did you put the kitchen scissors",
    "the train to london leaves at noon", "how much does this jacket cost",
    "we should paint the garage next summer", "she forgot her umbrella at the office",
    "which bus goes to the airport", "the doctor will see you on thursday",
    "please pass me the butter", "our neighbors bought a new piano",
    "is there a bank near the station", "the printer is out of paper again",
    "why is the price of oil rising", "they canceled the meeting this afternoon",
    "did you lock the front door", "the museum is closed on mondays",
    "he plays chess with his grandfather", "the recipe needs three eggs and some flour",
    "have you seen my other shoe", "the lawyer signed the contract yesterday",
    # Held out from here on (see NUM_OUT_OF_SCRIPT_HELD_OUT).
    "mesh wire keeps chicks inside", "a zestful food is the hot cross bun",
    "cars and busses stalled in snow drifts", "the set of china hit the floor with a crash",
    "this is a grand season for hikes on the road", "the dune rose from the edge of the water",
    "those words were the cue for the actor to leave", "a yacht slid around the point into the bay",
    "the two met while playing on the sand", "the ink stain dried on the finished page",
    "the walled town was seized without a fight", "the lease ran out in sixteen weeks",
    "a tame squirrel makes a nice pet", "the horn of the car woke the sleeping cop",
    "the heart beat strongly and with firm strokes", "the pearl was worn in a thin silver ring",
    "the fruit peel was cut in thick slices", "the navy attacked the big task force",
    "see the cat glaring at the scared mouse", "there are more than two factors here",
    "did you remember to feed the parrot", "the elevator is broken again",
    "which shelf has the garden tools", "my sister works at the bakery",
    "when does the library open", "the carpenter repaired our wooden stairs",
    "could you water the plants on friday", "the kitchen smells of burnt toast",
    "how do i get to the post office", "they sailed around the island in june",
    "your package arrived this morning", "is this seat taken", "the museum guide spoke too fast",
    "we ordered pizza with mushrooms",
)  # fmt: skip
NUM_OUT_OF_SCRIPT_HELD_OUT = 34

_OPENERS = (
    "let me tell you about my day", "let me tell you what happened", "listen to this story",
    "i have to tell you something",
)  # fmt: skip
_CLOSERS = ("and that is my story", "and that is all i wanted to say", "and that was all")
_MONOLOGUE_MIDDLES = (
    ("this morning i missed the bus", "so i walked along the river"),
    ("we painted the old kitchen yellow", "and the cat stepped into the paint"),
    ("my brother bought a wooden boat", "it leaks a little on the left side"),
    ("last night the power went out", "we lit candles and played cards"),
    ("i planted tomatoes in the garden", "now the rabbits come every evening"),
    ("the baker gave me a warm roll", "he said it was my lucky morning"),
    ("we drove to the lake on sunday", "the water was far too cold"),
    ("my neighbor plays the trumpet", "he practices early in the morning"),
    ("i found an old letter in the attic", "it was from my grandmother"),
    ("the children built a snowman", "he wears my best winter hat"),
    ("at the market i bought a lamp", "it does not work at all"),
    ("our team lost the final match", "but we celebrated anyway"),
    ("i tried to bake a chocolate cake", "the oven was much too hot"),
    ("a bird flew into the office", "everybody ran around with towels"),
    ("the train stopped in a tunnel", "we waited there for an hour"),
    ("my daughter started school", "she already knows every teacher"),
    ("i took the wrong suitcase", "it was full of rubber ducks"),
    ("we climbed up to the castle", "from there you can see the sea"),
    ("my bicycle had a flat tire", "a kind farmer helped me fix it"),
    ("i learned to knit this winter", "so far i have half a sock"),
    # Held out from here on (see NUM_MONOLOGUES_HELD_OUT).
    ("the dentist was very friendly", "he gave me a purple toothbrush"),
    ("we adopted a very old horse", "it only likes carrots and apples"),
    ("my cousin opened a coffee shop", "the first guest was the mayor"),
    ("i repaired the broken radio", "it only plays accordion songs"),
    ("the wind took my umbrella", "it landed on the church roof"),
    ("we camped beside the forest", "an owl kept us awake"),
)  # fmt: skip
NUM_MONOLOGUES_HELD_OUT = 6


def _monologues() -> tuple[Monologue, ...]:
    first_held_out = len(_MONOLOGUE_MIDDLES) - NUM_MONOLOGUES_HELD_OUT
    return tuple(
        Monologue(
            (_OPENERS[i % len(_OPENERS)], *middle, _CLOSERS[i % len(_CLOSERS)]),
            held_out=i >= first_held_out,
        )
        for i, middle in enumerate(_MONOLOGUE_MIDDLES)
    )


MONOLOGUES: tuple[Monologue, ...] = _monologues()
OUT_OF_SCRIPT_TRAIN = OUT_OF_SCRIPT[:-NUM_OUT_OF_SCRIPT_HELD_OUT]
OUT_OF_SCRIPT_HELD_OUT = OUT_OF_SCRIPT[-NUM_OUT_OF_SCRIPT_HELD_OUT:]


# Flite spells "Mm-hm" and takes "la" for Louisiana: what a synthesizer is given instead of a word.
SPOKEN_FORMS = {"mm-hm": "um hum", "la": "lah", "ai": "ay eye"}


def replies() -> tuple[str, ...]:
    """Everything nano ever says, each text once."""
    return (*(i.reply for i in INTENTS), NOT_UNDERSTOOD, BACKCHANNEL, MONOLOGUE_REPLY)


def find_intent(name: str) -> Intent:
    """The intent called `name`; KeyError if there is none."""
    return {intent.name: intent for intent in INTENTS}[name]
