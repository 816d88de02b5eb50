"""Results in other forms, for people and for the programs that come after."""
