"""Importing what other tools keep of their sessions: the format of each is one module here."""
