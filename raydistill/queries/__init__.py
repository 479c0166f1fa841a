"""Takes files of queries and, where these are too few, a teacher's own. Gives Queries: read, unlike, split."""
