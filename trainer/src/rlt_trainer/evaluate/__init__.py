"""How often a student is right: samples from the model or a server, answers compared, pass@k."""
