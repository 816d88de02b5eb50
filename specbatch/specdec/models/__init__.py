"""What models are, known from their files alone: what is decoded, what makes a pair, what it will take."""
