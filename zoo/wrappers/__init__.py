"""Plug-ins around a family: a critic, a reward."""
