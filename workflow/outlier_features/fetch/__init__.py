"""Models and corpora from the hub, from wheels, from directories: the only stages that talk to a network."""
