"""How the processes of one node talk: the admin process asks, its workers answer."""
