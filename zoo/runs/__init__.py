"""Recipes, opened runs, and the networks that one run takes from another."""
