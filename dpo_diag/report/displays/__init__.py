"""Displays: each has a function that returns the frame it draws and a function that draws that frame."""
