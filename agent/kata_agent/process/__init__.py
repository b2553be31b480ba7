"""Processes of containers: their start, their stdio, their end. PID 1's children, whoever made them."""
