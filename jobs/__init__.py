"""Takes a task file. Gives a distilled, served model: the jobs open the doors of the rooms in order."""
