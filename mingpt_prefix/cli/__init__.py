"""What the programs share: flags, recipes, the terminal."""
