"""What hears: MuQ for the music, CAM++ for the voice, and the store that remembers what they heard."""
