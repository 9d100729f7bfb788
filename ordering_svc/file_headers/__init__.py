"""Reads the beginnings of files that strangers made: every length is bounded before anything is allocated."""
