"""Attacks on a deployment, with clients that share no code with it."""
