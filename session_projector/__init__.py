"""Tails an event log and folds it into session views."""
