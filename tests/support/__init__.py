"""What several test modules share: tiny models, runs, naive transcriptions, fixtures."""
