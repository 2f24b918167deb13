"""Trained models in use: galleries of people one can search, and a page for them."""
