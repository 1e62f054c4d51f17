"""The event stream between an agent and the people watching it."""

from turnstream._native import *  # noqa: F403
