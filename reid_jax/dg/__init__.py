"""Domain generalisation: trained on some sets, tested on others of which nothing was seen, in one table."""
