"""Schedules of a temperature or margin, one file each."""
