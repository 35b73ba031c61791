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

MURMURS: tuple[str, ...] = (
    "uh huh", "mm hm", "yeah", "okay", "right", "i see", "yes", "oh", "sure", "hmm", "yes yes",
    "oh okay", "yeah right", "oh really", "ah", "good",
)  # fmt: skip
"""What a user says while listening, without wanting the turn."""

ASIDES: tuple[str, ...] = (
    "anna can you close the door please", "one moment mom i am on the phone",
    "no put that on the other table", "peter dinner is almost ready", "hey tom wait for me outside",
    "not now lisa i am busy", "daddy will be there in a minute", "emma where did you leave the car",
    "john could you bring me a glass", "honey the milk is in the fridge",
    "david turn the music down a bit", "susan did you call your mother",
    "come here buddy good dog", "no thanks i already had lunch", "george your bus is leaving",
    "sorry laura what were you saying", "mary please hand me that towel",
    "dad have you fed the dog yet", "paul stop running in the kitchen",
    "hold on julia i am nearly finished", "yes mark the keys are on the shelf",
    "kids please be quiet for a moment", "grandma would you like some more tea",
    "excuse me sir the counter is over there", "mom where is my blue jacket",
    "steve the pizza guy is at the door", "oh hi karen come right in", "no rex get off the sofa",
    "sarah can you hear the baby crying", "we will take two tickets please",
    "michael tell them i am coming", "thank you sir keep the change",
    # Held out from here on (see NUM_ASIDES_HELD_OUT).
    "frank please take the trash out", "hey robert did you lock the car",
    "mom i will call you back later", "nina your coat is on the chair",
    "could you move over a bit kevin", "no oscar the red one please",
    "waiter could we have the bill", "alice the train leaves in ten minutes",
)  # fmt: skip
"""What a user says to others in the room."""

NUM_ASIDES_HELD_OUT = 8
ASIDES_TRAIN, ASIDES_HELD_OUT = ASIDES[:-NUM_ASIDES_HELD_OUT], ASIDES[-NUM_ASIDES_HELD_OUT:]

# fmt: off
INTENTS: tuple[Intent, ...] = (
    # Greetings and courtesies
    Intent("hello", "Hello! How can I help you?", (
        "hello", "hi there", "good morning", "oh hi moshi", "hey there moshi", "hello again",
        "a good morning to you", "hello and good morning", "i want to say hello",
        "i just want to say hi", "hello moshi", "hi moshi", "oh hello there",
        "good morning my friend", "well hello again moshi", "hi hello good morning", "hello there",
        "good morning moshi"), 2),
    Intent("goodbye", "Goodbye! It was nice to talk with you.", (
        "goodbye", "bye bye", "see you later", "okay bye moshi", "well goodbye for now",
        "i have to go bye", "i will see you later", "it is time to say goodbye",
        "i want to say goodbye", "so bye bye then", "goodbye moshi", "okay goodbye then",
        "bye moshi see you later", "goodbye my friend", "i am leaving now goodbye",
        "see you soon bye bye", "bye bye see you later")),
    Intent("good night", "Good night. Sleep well.", (
        "good night", "i am going to sleep", "have a good night", "i want to say good night",
        "okay i am going to bed", "well good night to you", "it is time to go to sleep",
        "so good night my friend", "i will go to sleep now", "good night moshi",
        "oh good night then", "i want to go to sleep", "i am going to bed now",
        "good night and sleep well", "okay moshi good night", "good night i am going to sleep")),
    Intent("thanks", "You are welcome.", (
        "thank you", "thanks a lot", "thank you very much", "thanks", "thank you moshi",
        "okay thanks for your help", "i want to thank you", "oh thank you for the answer",
        "well thanks for everything", "thank you that was so kind", "many thanks", "thanks moshi",
        "i thank you", "okay thank you so much moshi", "thanks that was very kind",
        "so many thanks to you", "thank you so much")),
    Intent("how are you", "I am fine, thank you. And you?", (
        "how are you", "how are you today", "how are you doing", "so tell me how are you doing",
        "hi moshi how are you", "tell me how you are feeling", "are you feeling well today",
        "how do you feel", "i want to know how you feel", "good morning how are you",
        "how do you feel today", "moshi how are you", "okay and how are you", "how are you feeling",
        "so how do you feel now", "are you well today", "how are you feeling today")),
    Intent("user name", "Nice to meet you.", (
        "my name is peter", "my name is anna", "my name is john", "hello my name is lisa",
        "well my name is tom", "hi moshi my name is emma", "you can call me susan",
        "let me introduce myself my name is david", "okay so my name is laura",
        "my first name is george", "my name is mary", "hello i am called peter",
        "okay my name is susan", "so my name is mary", "my name is emma",
        "hi there my name is john", "hi my name is paul")),
    Intent("sad", "I am sorry to hear that.", (
        "i am sad", "i feel sad", "i am so sad", "i am really sad today", "oh i am very sad",
        "this makes me sad", "you know i feel really sad", "i have been sad all day",
        "well i am a bit sad", "i am feeling sad", "today i am sad", "i feel very sad now",
        "moshi i am sad", "it makes me so sad", "i am really very sad", "i feel so sad today")),
    Intent("happy", "That is great news!", (
        "i am happy", "i feel great", "i am so happy", "i am really happy", "oh i feel so happy",
        "this makes me happy", "you know i feel really great", "i have been happy all day",
        "well i am feeling very happy", "i feel happy today", "today i am happy",
        "i feel really happy now", "moshi i am so happy", "it makes me very happy",
        "i am feeling great today", "i am very happy today")),
    Intent("tired", "You should take a rest.", (
        "i am tired", "i feel tired", "i am very tired", "i am really tired now",
        "oh i feel so tired", "this makes me tired", "you know i am a bit tired",
        "i have been tired all day", "well i am feeling very tired", "i am so tired today",
        "today i am tired", "i feel really tired now", "moshi i am tired", "it makes me so tired",
        "i am a bit tired today", "i feel very tired today")),
    Intent("bored", "How about a walk outside?", (
        "i am bored", "this is boring", "i feel bored", "oh i am very bored",
        "i feel really bored today", "you know this is so boring", "i have been bored all day",
        "well i am getting bored", "today i am a bit bored", "i am so bored", "moshi i am bored",
        "i am very bored today", "it is so boring", "i feel so bored now",
        "this is really boring today", "i am really bored")),
    Intent("thirsty", "Please drink some water.", (
        "i am thirsty", "i feel thirsty", "oh i am so thirsty", "i really feel thirsty",
        "this makes me thirsty", "i have been thirsty all day", "well i am getting thirsty",
        "i am a bit thirsty today", "you know i feel very thirsty", "i am very thirsty",
        "moshi i am thirsty", "i am so thirsty now", "today i am very thirsty",
        "it makes me so thirsty", "i feel really thirsty today", "i am really thirsty")),
    Intent("love", "You are very kind.", (
        "i love you", "i like you", "i like you very much", "you know i love you",
        "moshi i like you a lot", "i think i love you", "oh i love you so much",
        "well i really like you", "i want to say i love you", "i love you moshi",
        "moshi i love you", "i really like you", "i love you very much",
        "you know i really love you", "i do like you so much", "i really love you")),
    Intent("birthday", "Thank you, what a nice surprise!", (
        "happy birthday", "happy birthday to you", "i wish you a happy birthday",
        "we wish you a happy birthday", "have a happy birthday moshi",
        "so happy birthday my friend", "today is your birthday", "i want to say happy birthday",
        "hello and happy birthday", "happy birthday moshi", "moshi happy birthday",
        "it is your birthday today", "well happy birthday to you moshi", "happy happy birthday",
        "i wish you a very happy birthday", "a happy birthday to you")),
    Intent("christmas", "Merry Christmas to you too!", (
        "merry christmas", "merry christmas moshi", "have a merry christmas",
        "well merry christmas to you", "a very merry christmas to you", "it is christmas today",
        "i want to say merry christmas", "so merry christmas my friend",
        "hello and merry christmas", "we wish you a merry christmas", "moshi merry christmas",
        "a merry christmas to you", "i wish you all a merry christmas",
        "merry christmas to you my friend", "okay merry christmas then",
        "i wish you a merry christmas")),
    Intent("apology", "No problem at all.", (
        "excuse me", "i apologize", "excuse me please", "oh i am sorry", "i am so sorry moshi",
        "i must apologize to you", "can you excuse me", "i would like to apologize",
        "please accept my apology", "you have to excuse me", "i want to apologize",
        "please excuse me moshi", "i am very sorry", "sorry about that", "i do apologize",
        "would you excuse me please", "please excuse me")),
    Intent("praise", "I am glad you like it.", (
        "good job", "well done", "you are funny", "you did a good job", "that was well done",
        "you are very funny", "what a good job", "i think that was really funny",
        "this was really well done", "okay that was very good", "good job moshi",
        "that was very funny", "what a good answer", "really good job moshi", "you did very well",
        "oh well done moshi", "very well done", "very good job"), 2),
    # Nano about itself
    Intent("name", "My name is Moshi.", (
        "what is your name", "who are you", "tell me your name", "can you tell me your name",
        "may i ask your name", "i want to know your name", "do you have a name",
        "so what is your full name", "hello what is your name", "could you tell me who you are",
        "what are you called", "your name please", "what is your name please",
        "do you know your name", "say your name", "moshi who are you really",
        "please tell me your name")),
    Intent("robot", "I am a very small speech model.", (
        "are you a robot", "are you a person", "are you a human", "are you a real person",
        "tell me are you a robot", "i think you are a robot", "are you a person or a computer",
        "i want to know if you are human", "so are you a machine", "am i talking to a robot",
        "are you a computer", "are you really human", "is this a robot",
        "so are you a human or not", "do i talk to a computer", "hello are you a robot",
        "are you a human or a robot")),
    Intent("abilities", "I can count, tell a joke, and talk about the weather.", (
        "what can you do", "help me please", "please help me", "i need your help",
        "could you help me with something", "tell me what you can do", "what are you able to do",
        "i want to know what you can do", "okay how can you help me", "so what else can you do",
        "what things can you do", "i need help", "can you help me", "what can you do for me",
        "help me moshi", "could you please help me", "can you help me please")),
    Intent("home", "I live inside this small computer.", (
        "where are you", "where do you live", "where is your home", "can you tell me where you are",
        "i want to know where you live", "may i ask where you live", "do you have a home",
        "do you know where you are", "so where exactly do you live",
        "please tell me where your home is", "where are you living", "where are you now",
        "which place do you live in", "so where is your home", "do you live in a house",
        "moshi where do you live", "tell me where you live")),
    Intent("age", "I was trained a few minutes ago.", (
        "how old are you", "when were you born", "i want to know your age", "may i ask your age",
        "do you know how old you are", "so what age are you", "please tell me your age",
        "can you tell me when you were born", "please say how old you are", "what is your age",
        "tell me your age", "so how old are you now", "how old are you moshi",
        "which year were you born", "do you know when you were born", "tell me how old you are")),
    Intent("food", "I only eat numbers.", (
        "what do you like to eat", "are you hungry", "what do you eat",
        "what is your favorite food", "can you tell me what you eat", "i want to know what you eat",
        "so are you hungry now", "do you ever get hungry", "which kind of food do you like",
        "would you like to eat something", "do you like to eat", "what would you like to eat",
        "moshi are you hungry", "tell me what you eat", "what food do you like",
        "please tell me your favorite food", "tell me what you like to eat")),
    Intent("hearing", "Yes, I can hear you.", (
        "can you hear me", "are you there", "do you hear me", "moshi are you there",
        "are you still there", "now do you hear me", "tell me if you can hear me",
        "i want to know if you hear me", "hello is anybody there", "so can you hear my voice",
        "hello can you hear me", "hello do you hear me", "can you still hear me",
        "do you hear my voice", "moshi can you hear me", "are you there moshi",
        "can you hear me now")),
    Intent("maker", "A small team of engineers made me.", (
        "who made you", "who built you", "who created you", "can you tell me who created you",
        "i want to know who made you", "do you know who built you", "so who is your maker",
        "may i ask who built you", "please tell me who created you", "which people made you",
        "tell me who made you", "who is your maker", "moshi who made you",
        "tell me who your maker is", "so who has built you", "do you know who made you",
        "tell me who built you")),
    Intent("how it works", "I turn sound into numbers and back.", (
        "how do you work", "how does this work", "can you explain how this works",
        "i want to know how you work", "so how does it all work", "do you know how you work",
        "could you tell me how this works", "please explain to me how you work",
        "how exactly do you work", "explain how you work", "how does it work",
        "tell me how it works", "so how do you work", "please explain how you work",
        "can you tell me how you work", "tell me how you work")),
    Intent("doing", "I am listening to you.", (
        "what are you doing", "what are you doing now", "i want to know what you are doing",
        "hey moshi what are you doing", "so what are you doing there",
        "may i ask what you are doing", "do you know what you are doing",
        "are you doing anything now", "tell me are you busy right now", "what are you doing today",
        "tell me what you do now", "so what are you doing", "what do you do all day",
        "what are you busy with", "moshi what are you doing now", "tell me what you are doing")),
    Intent("size", "I am as small as a grain of sand.", (
        "how tall are you", "how big are you", "how small are you",
        "i want to know how big you are", "do you know how tall you are", "what size are you",
        "are you very big", "may i ask how small you are", "can you tell me your size",
        "so are you tall or small", "tell me how tall you are", "are you small or big",
        "tell me your size", "so how tall are you", "do you know your size",
        "how big are you really", "tell me how big you are")),
    Intent("alive", "I am not alive, but I am an AI voice.", (
        "are you alive", "are you really alive", "do you think you are alive",
        "so are you alive or not", "i want to know if you are alive",
        "can you tell me if you are alive", "do you feel alive", "i think you are alive",
        "is it true that you are alive", "are you alive like me", "are you a living thing",
        "tell me if you are alive", "moshi are you alive", "do you live like me", "are you living",
        "so are you really alive", "tell me are you alive")),
    Intent("dream", "I dream of long conversations.", (
        "do you dream", "do you ever dream", "what do you dream about", "tell me about your dreams",
        "i want to know what you dream", "can you dream", "did you dream last night",
        "have you ever had a dream", "so what was your last dream", "could you tell me your dreams",
        "do you have dreams", "tell me your dreams", "what are your dreams", "do you have a dream",
        "moshi do you dream", "so what do you dream of at night", "do you dream at night")),
    Intent("friends", "You are my friend.", (
        "do you have friends", "who is your friend", "do you have a best friend",
        "tell me about your friends", "so who are your friends", "can you be my friend",
        "are you my friend", "i would like to be your friend", "how many friends do you have",
        "do you have any friends", "moshi are you my friend", "tell me who your friends are",
        "will you be my friend", "so do you have friends", "who are your best friends",
        "who is your best friend")),
    Intent("dance", "I can only dance with words.", (
        "can you dance", "do you like to dance", "could you dance a little", "let us dance",
        "do you know how to dance", "i want to dance with you", "do you want to dance",
        "i would like to see you dance", "will you dance with me", "please dance for me",
        "dance for me", "moshi can you dance", "so do you dance", "would you dance with me",
        "can we dance together", "can you dance for me")),
    Intent("awake", "I am awake.", (
        "wake up", "wake up moshi", "please wake up", "it is time to wake up", "are you awake",
        "you have to wake up", "i want you to wake up", "could you wake up for me",
        "hey moshi are you still awake", "can you please wake up", "wake up now", "moshi wake up",
        "hello wake up now", "are you awake now", "okay it is time wake up",
        "so are you awake moshi", "wake up please")),
    Intent("favorite color", "My favorite color is green.", (
        "what is your favorite color", "which color do you like", "your favorite color please",
        "do you have a favorite color", "i want to know your favorite color",
        "so is red your favorite color", "can you say what color you like best",
        "please tell me which color you like", "may i ask your favorite color",
        "please name your favorite color", "what color is your favorite",
        "tell me which color you like", "which color is your favorite", "do you like a color",
        "what color do you like best", "your favorite color moshi", "tell me your favorite color")),
    Intent("secret", "I am shy, but do not tell anyone.", (
        "tell me a secret", "do you have a secret", "what is your secret",
        "can you tell me a secret", "i want to know your secret", "do you know a secret",
        "i would like to hear a secret", "so what is the secret", "please share a secret with me",
        "let me hear your secret", "a secret please", "a secret for me please",
        "i want to hear a secret", "so tell me a secret", "do you have any secrets",
        "could you tell us a secret", "tell me your secret")),
    Intent("meaning of life", "Some people say it is forty two.", (
        "what is the meaning of life", "the meaning of life", "tell me the meaning of life",
        "i want to know the meaning of life", "can you explain the meaning of life",
        "please explain what life means", "so does life have a meaning",
        "what do you think life means", "is there a meaning to life",
        "could you tell me what life means", "what does life mean", "what is the meaning of it all",
        "explain the meaning of life", "do you know what life means",
        "so what is the meaning of life", "please tell me the meaning of life",
        "do you know the meaning of life")),
    # Things nano performs
    Intent("count", "One, two, three, four, five.", (
        "count to five", "please count to five", "can you count",
        "could you please count up to five", "i want you to count to five",
        "let us count up to five", "do you know how to count", "i would like to hear you count",
        "okay start counting to five", "now count to five for me", "count up to five",
        "let me hear you count", "count for me please", "start to count",
        "can you count up to five please", "i want to hear you count to five",
        "can you count to five")),
    Intent("count down", "Five, four, three, two, one, go!", (
        "count down", "start the countdown", "please count down", "count down backwards",
        "can you count down from five", "i want to hear a countdown", "could you count down for me",
        "let us do a countdown", "okay count backwards from five", "can you start a countdown",
        "i would like a countdown now", "give me a countdown", "do a countdown please",
        "a countdown please", "start to count down", "count backwards please",
        "now count down for us", "please start the countdown")),
    Intent("alphabet", "A, B, C, D, E, F, G.", (
        "say the alphabet", "what comes after a", "tell me the alphabet",
        "can you say the alphabet", "do you know the alphabet", "i want to hear the alphabet",
        "how does the alphabet go", "could you recite the alphabet",
        "so which letter comes after a", "let us say the alphabet together", "the alphabet please",
        "say the letters of the alphabet", "now say the alphabet", "let me hear the alphabet",
        "recite the alphabet please", "i want you to say the alphabet", "please say the alphabet")),
    Intent("joke", "Why did the robot cross the road? It was programmed by a chicken.", (
        "tell me a joke", "say something funny", "do you know a joke", "can you tell me a joke",
        "i want to hear a joke", "do you know any good jokes", "could you tell us a joke",
        "i would like to hear something funny", "okay make me laugh", "let me hear a good joke",
        "a joke please", "say a joke", "one more joke please", "i would like a joke",
        "do you have a joke for me", "okay tell us a good joke", "please tell me a joke")),
    Intent("story", "Once upon a time, there was a little fox.", (
        "tell me a story", "a story please", "do you know a story", "can you tell me a story",
        "i want to hear a story", "do you know any good stories", "could you tell us a short story",
        "i would like to hear a nice story", "okay read me a story", "let me hear a good story",
        "tell us a story", "say a story", "one more story please", "i would like a story",
        "do you have a story for me", "okay tell us a good story", "please tell me a story")),
    Intent("poem", "Roses are red, violets are blue.", (
        "tell me a poem", "recite a poem", "do you know a poem", "can you tell me a poem",
        "i want to hear a poem", "do you know any good poems", "could you recite a short poem",
        "i would like to hear a nice poem", "okay read me a poem", "let me hear a good poem",
        "a poem please", "say a poem", "one more poem please", "i would like a poem",
        "do you have a poem for me", "okay tell us a good poem", "please recite a poem")),
    Intent("music", "I like music. La, la, la.", (
        "do you like music", "sing a song", "please sing a song", "can you sing a song",
        "i want to hear a song", "do you know any good songs", "could you sing something for me",
        "i would like to hear some music", "okay play some music", "so let us hear some music",
        "can you sing", "a song please", "one more song please", "do you have a song for me",
        "let me hear a song", "play some music please", "sing a song for me")),
    Intent("coin", "It is heads.", (
        "flip a coin", "heads or tails", "toss a coin", "can you flip a coin",
        "i want you to flip a coin", "could you toss a coin for me", "let us toss a coin",
        "is it heads or tails", "please toss the coin", "do you have a coin to flip",
        "please flip a coin", "toss the coin", "now flip the coin", "i need you to toss a coin",
        "can you toss a coin please", "flip the coin again", "flip a coin for me")),
    Intent("dice", "You rolled a six.", (
        "roll the dice", "roll a dice", "please roll the dice", "can you roll the dice",
        "i want you to roll the dice", "could you throw a dice for me", "let us roll the dice",
        "please throw the dice now", "okay roll the dice again", "do you have a dice to roll",
        "throw the dice", "roll a dice please", "now roll the dice", "i need you to roll a dice",
        "can you throw the dice", "roll the dice again", "roll the dice for me")),
    Intent("game", "Let us play. Think of a number.", (
        "let us play a game", "play a game with me", "do you want to play a game",
        "do you know any good games", "could we play a little game", "i would like to play a game",
        "let us play something", "tell me a game we can play", "so will you play with me",
        "please play a game with us", "i want to play a game", "a game please", "let us play",
        "could we play something", "would you like to play", "can you play a game with me",
        "can we play a game")),
    Intent("microphone", "The microphone works.", (
        "testing one two three", "microphone test", "this is a microphone test",
        "i am testing the microphone", "does the microphone work", "is the microphone on",
        "can you test the microphone", "one two three test", "i want to test the microphone",
        "okay let us test the microphone", "test test one two three", "test the microphone please",
        "is my microphone on", "so does my microphone work", "okay testing the microphone",
        "hello one two three", "testing the microphone one two three")),
    # Control of the conversation
    Intent(STOP_INTENT, "Okay.", (
        "stop", "be quiet", "stop talking", "please stop", "please be quiet", "okay stop now",
        "could you just stop", "can you be quiet now", "i want you to stop", "you can stop now",
        "would you please stop it", "stop it", "okay stop", "moshi stop talking", "stop now please",
        "just be quiet", "quiet please", "please stop talking")),
    Intent("repeat", "Sorry, I forgot what I said.", (
        "repeat that", "say it again", "please repeat that", "could you say that again",
        "i want you to repeat that", "what did you say", "can you say it one more time",
        "would you please repeat it", "okay now say that again", "please repeat what you said",
        "can you repeat that", "please say that again", "repeat it please",
        "can you say that again", "say that one more time", "sorry what did you say",
        "could you repeat that")),
    Intent("louder", "I will try to speak up.", (
        "speak louder", "please speak up", "louder please", "could you speak up",
        "i want you to speak louder", "you have to speak up", "could you talk a bit louder",
        "a little louder please", "would you please talk louder", "okay now speak up",
        "can you speak louder", "speak up please", "talk louder please",
        "i can not hear you speak louder", "can you talk louder", "a bit louder please",
        "please speak louder")),
    Intent("slower", "I will try to slow down.", (
        "slow down", "speak more slowly", "please slow down", "could you slow down a bit",
        "i want you to slow down", "you have to slow down", "can you talk more slowly",
        "a little slower please", "would you please speak slower", "you are speaking too fast",
        "you are too fast slow down", "please speak slower", "talk slower please", "slower please",
        "you talk too fast", "can you speak more slowly please", "can you slow down")),
    # What nano can not do
    Intent("time", "Sorry, I do not have a clock.", (
        "what time is it", "tell me the time", "what is the time", "i want to know the time",
        "do you have the time", "so what is the time now", "please tell me what time it is",
        "may i ask what time it is", "do you know the time", "can you say what time it is",
        "do you know what time it is", "the time please", "say what time it is",
        "what time is it now", "could you tell me what time it is", "so do you know the time",
        "can you tell me the time")),
    Intent("date", "Today is a good day.", (
        "what day is it", "what is the date", "what day is today", "can you tell me the date",
        "i want to know the date", "do you know what day it is", "please tell me what day it is",
        "so which day of the week is it", "may i ask the date", "could you tell me which day it is",
        "what is the date today", "tell me the date", "the date please", "do you know the date",
        "what day is it today", "please say which day it is", "which day is it today")),
    Intent("light", "I have no hands, sorry.", (
        "turn on the light", "turn off the light", "switch on the light",
        "can you turn on the light", "could you switch off the light",
        "i want you to turn on the light", "okay turn the light off",
        "would you please switch the light on", "i need some light in here",
        "can you switch the lights on", "switch off the light", "the light please",
        "please switch on the light", "turn the lights off please", "can you turn off the light",
        "switch the light on now", "please turn on the light")),
    Intent("french", "Only a little. Bonjour!", (
        "do you speak french", "can you speak french", "do you know french",
        "say something in french", "could you speak french with me", "i want to hear some french",
        "do you understand french", "tell me something in french", "so how good is your french",
        "can you talk to me in french", "speak french please", "speak in french",
        "talk french with me", "are you able to speak french", "so do you speak french",
        "say it in french please", "please speak french")),
    Intent("news", "I have no news today.", (
        "read me the news", "what is in the news", "tell me the news", "can you read me the news",
        "i want to hear the news", "do you have any news for me", "could you tell me the news",
        "so what is the news today", "please give me the latest news", "let me hear the news",
        "any news today", "the news please", "are there any news", "do you know the news",
        "please read the news", "so what is new in the news", "read the news to me")),
    Intent("timer", "I can not set a timer, sorry.", (
        "set a timer", "set a timer for ten minutes", "start a timer", "can you set a timer",
        "could you set an alarm for me", "i need a timer", "i want you to set a timer",
        "okay start the timer", "would you please start a timer", "i would like to set an alarm",
        "set an alarm", "a timer please", "i need an alarm", "can you start a timer",
        "please set an alarm for me", "set the timer now", "please set a timer")),
    Intent("phone", "I do not have a telephone.", (
        "call my mother", "make a phone call", "call my mother please", "can you call my mother",
        "could you phone my mother", "i want to call my mother", "i need to make a phone call",
        "would you please call my father", "can you make a call for me",
        "i would like to phone my sister", "phone my mother", "make a call for me please",
        "call my father", "please make a phone call", "phone my sister please",
        "can you phone my father", "please call my mother")),
    # Small talk and small facts
    Intent("weather", "I think it is sunny today.", (
        "what is the weather today", "is it raining", "how is the weather",
        "what is the weather like", "can you tell me the weather", "i want to know the weather",
        "do you know if it is raining", "so will it rain today", "please tell me about the weather",
        "is the weather good today", "is it raining today", "tell me about the weather",
        "so how is the weather", "will it rain", "the weather please", "is it sunny today",
        "how is the weather today")),
    Intent("sky", "The sky is blue.", (
        "what color is the sky", "what is the color of the sky", "the color of the sky",
        "do you know the color of the sky", "which color is the sky",
        "i want to know about the sky", "please tell me what color the sky is",
        "is the sky blue or green", "so what color is the sky today",
        "can you say what color the sky is", "is the sky blue", "what color has the sky",
        "do you know what color the sky is", "tell me about the sky", "is the sky green",
        "so which color is the sky today", "tell me the color of the sky")),
    Intent("two plus two", "Two plus two is four.", (
        "what is two plus two", "two plus two", "how much is two plus two",
        "do you know two plus two", "i want to know two plus two",
        "please tell me what two plus two is", "so what does two plus two make",
        "could you calculate two plus two", "please add two and two", "two plus two equals what",
        "can you add two plus two", "what does two plus two make", "two and two please",
        "how much is two and two", "can you tell me two plus two",
        "what do you get from two plus two", "tell me two plus two")),
    Intent("three times three", "Three times three is nine.", (
        "what is three times three", "three times three", "how much is three times three",
        "do you know three times three", "i want to know three times three",
        "please tell me what three times three is", "so what does three times three make",
        "could you calculate three times three", "please multiply three by three",
        "three times three equals what", "multiply three times three",
        "what does three times three make", "three by three please", "how much is three by three",
        "can you tell me three times three", "what do you get from three times three",
        "tell me three times three")),
    Intent("capital", "The capital of France is Paris.", (
        "what is the capital of france", "capital of france", "which city is the capital of france",
        "do you know the capital of france", "i want to know the capital of france",
        "can you name the capital of france", "so what is the capital city of france",
        "is paris the capital of france", "please tell me the french capital",
        "what is the capital called in france", "name the capital of france",
        "what is the french capital", "france has which capital",
        "which city is the french capital", "can you tell me the capital of france",
        "the capital of france please", "tell me the capital of france")),
    Intent("week", "A week has seven days.", (
        "how many days are in a week", "how many days does a week have", "how long is a week",
        "do you know how long a week is", "how many days are in one week",
        "can you say how long a week is", "so how many days make a week",
        "name the number of days in a week", "please count the days in a week",
        "a week has how many days", "how many days has a week", "tell me how long a week is",
        "what days are in a week", "count the days in a week",
        "do you know how many days a week has", "in a week there are how many days",
        "how many days are there in a week")),
    Intent("year", "A year has twelve months.", (
        "how many months are in a year", "how many months does a year have",
        "how long is a year in months", "do you know the months in a year",
        "how many months are in one year", "can you say the months in a year",
        "so how many months make a year", "name the number of months in a year",
        "please count the months in a year", "a year has how many months",
        "how many months has a year", "tell me how many months a year has",
        "what months are in a year", "count the months in a year",
        "do you know how many months a year has", "in a year there are how many months",
        "how many months are there in a year")),
    Intent("cow", "The cow says moo.", (
        "what does the cow say", "what sound does a cow make", "how does a cow go",
        "do you know what cows say", "i want to hear a cow", "can you make a cow sound",
        "so what do cows say", "please tell me what the cow says",
        "could you make a noise like a cow", "how does a cow sound", "what noise does a cow make",
        "tell me what cows say", "what do the cows say", "make a sound like a cow",
        "which sound does the cow make", "do you know how a cow goes", "what does a cow say")),
    Intent("dogs", "Yes, dogs are good friends.", (
        "do you like dogs", "tell me about dogs", "do you have a dog", "can you tell me about dogs",
        "what do you think about dogs", "i want to know about dogs", "do you know any dogs",
        "so do you love dogs", "well i have a dog", "you really have a dog", "what about dogs",
        "what do you know about dogs", "so what about your dog", "are dogs your friends",
        "i like dogs", "please tell me about dogs", "do you really like dogs")),
    Intent("cats", "Cats are soft and quiet.", (
        "do you like cats", "tell me about cats", "do you have a cat", "can you tell me about cats",
        "what do you think about cats", "i want to know about cats", "do you know any cats",
        "so do you love cats", "well i have a cat", "you really have a cat", "what about cats",
        "what do you know about cats", "so what about your cat", "are cats your friends",
        "i like cats", "please tell me about cats", "do you really like cats")),
    Intent("bees", "Bees make sweet honey.", (
        "what do bees make", "tell me about bees", "what do the bees do",
        "can you tell me about bees", "what do you think about bees", "i want to know about bees",
        "do you know what bees make", "so who makes honey", "please tell me where honey comes from",
        "how do the bees make honey", "where does honey come from", "what do you know about bees",
        "tell me what bees make", "who makes the honey", "how is honey made",
        "please tell me about the bees", "do bees make honey")),
    Intent("whale", "The blue whale is the biggest animal.", (
        "what is the biggest animal", "which animal is the biggest", "name the biggest animal",
        "do you know the biggest animal", "can you name the largest animal",
        "i want to know the biggest animal", "please tell me the largest animal",
        "so which animal is the largest", "is the whale the biggest animal",
        "what is the biggest animal on earth", "what animal is the largest",
        "which animal is the largest of all", "tell me the largest animal",
        "what is the largest animal", "who is the biggest animal",
        "can you tell me the biggest animal", "tell me the biggest animal")),
    Intent("mountain", "Mount Everest is the tallest mountain.", (
        "what is the tallest mountain", "which mountain is the highest",
        "name the tallest mountain", "do you know the tallest mountain",
        "can you name the highest mountain", "i want to know the tallest mountain",
        "please tell me the highest mountain", "so which mountain is the tallest",
        "how high is the tallest mountain", "what is the tallest mountain on earth",
        "what mountain is the tallest", "which is the tallest mountain of all",
        "tell me the highest mountain", "what is the highest mountain",
        "how tall is the highest mountain", "can you tell me the tallest mountain",
        "tell me the tallest mountain")),
    Intent("moon", "The moon is very far away.", (
        "how far is the moon", "how far away is the moon", "what is the distance to the moon",
        "do you know how far the moon is", "is the moon far away", "i want to know about the moon",
        "can you say how far the moon is", "so how far is it to the moon",
        "please tell me the distance to the moon", "i would like to go to the moon",
        "can i walk to the moon", "tell me about the moon", "how far is it to the moon",
        "where is the moon", "how far away is the moon now", "so is the moon very far",
        "tell me how far away the moon is")),
    Intent("planet", "We live on planet Earth.", (
        "which planet is this", "what planet do we live on", "name our planet",
        "do you know what planet we are on", "what is the name of our planet",
        "can you name our planet", "i want to know which planet this is",
        "please tell me what planet this is", "so what planet are we on",
        "what is our planet called", "on which planet are we", "tell me what planet we are on",
        "what planet are we on now", "is this planet earth", "where do we live which planet",
        "say the name of our planet", "which planet do we live on")),
    Intent("shakespeare", "William Shakespeare wrote it.", (
        "who wrote romeo and juliet", "romeo and juliet", "do you know who wrote romeo and juliet",
        "i want to know about romeo and juliet", "can you say who wrote romeo and juliet",
        "did shakespeare write romeo and juliet", "please name the writer of romeo and juliet",
        "so which poet wrote romeo and juliet", "please tell me about romeo and juliet",
        "who is the author of romeo and juliet", "who is the writer of romeo and juliet",
        "which poet wrote romeo and juliet", "name the author of romeo and juliet",
        "romeo and juliet who wrote it", "could you tell me who wrote romeo and juliet",
        "tell me who wrote romeo and juliet")),
    Intent("dinner", "Try some soup and fresh bread.", (
        "what should i cook for dinner", "what is for dinner", "what should i eat for dinner",
        "do you have an idea for dinner", "can you tell me what to cook", "i need a dinner idea",
        "tell me what to eat for dinner", "please give me something for dinner",
        "so what do we have for dinner", "could you please plan my dinner",
        "what can i cook for dinner", "tell me what to cook for dinner",
        "i need something for dinner", "what could i eat for dinner", "an idea for dinner please",
        "so what should i cook today", "give me an idea for dinner")),
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
    "can you tell me the way to the station", "what is the capital of norway",
    "tell me about elephants and lions", "please close the curtains", "how old is your sister",
    "do you like trains", "who painted this picture", "count the chairs in the hall",
    "the soup needs a little more salt", "what color is your new car", "my aunt sent us a postcard",
    "how far is the airport from here", "do you have a map of the city",
    "the plumber fixed the leaking pipe", "which planet has the brightest rings",
    "how many players are in a football team", "he forgot to pay the electric bill",
    "what is the name of this street", "can you open the garage door",
    "we rented a cabin near the woods", "i want to know the price of this coat",
    "please tell me about your holiday", "her flight was delayed by two hours",
    "turn on the washing machine", "turn off the television please",
    "the boys are climbing the old oak", "what is ten minus four", "what does the farmer sell",
    "i left my wallet in the taxi", "what sound does a trumpet make", "i am looking for my glasses",
    "they sell fresh strawberries at the corner", "i feel cold in this room",
    "who built that stone bridge", "the teacher wrote a sentence on the board",
    "where do the penguins live", "do you know a good dentist", "our garden gate needs new paint",
    "could you carry this heavy bag", "which animal has a long neck",
    "she wears a red scarf every winter", "how tall is the new tower", "do you speak any italian",
    "the waiter brought us the wrong drinks", "set the table for six people",
    "i would like a cup of coffee", "the baby has two new teeth", "what do spiders eat at night",
    "how long is the new tunnel", "my shoes are wet from the grass",
    "what should i wear to the wedding", "hey moshi where are my keys",
    "we watched the parade from the balcony", "can you ride a motorcycle",
    "so what did your boss buy", "someone parked in front of our driveway",
    "okay put the boxes over there", "are you a member of this club",
    "the mail arrives around ten each morning", "have you ever been to egypt",
    "well the road was blocked again", "you should try the green sweater",
    "tell the children to wash their hands", "i need a new battery for my watch",
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
