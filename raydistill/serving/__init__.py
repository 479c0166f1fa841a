"""Takes a registry whose aliases move. Gives answers by verified versions, each naming its own, without a restart."""
