"""Takes held-out queries, the teacher's answers and a function that asks a served version. Gives the report."""
