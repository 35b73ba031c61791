"""What this machine can do: doctor, predictions, benchmarks."""
