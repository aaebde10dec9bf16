"""Attacks on puredrop: each file breaks one promise on purpose, again and again, and counts how often it broke."""
