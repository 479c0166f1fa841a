"""Takes a command line. Gives what a registry holds or a service serves, as a table or as JSON, and moves aliases."""
