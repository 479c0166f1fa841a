"""Takes Answers. Gives the Examples worth keeping, the Drops with their reasons, and a Manifest; reads them again."""
