"""Runs as folders: trained in processes of their own, read when finished, tested on other sets."""
