"""Takes rows of prompt tokens (P and a query). Gives the teacher's answers, from a Serve application."""
