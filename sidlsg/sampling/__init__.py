"""Prompts and seeds to pictures, and pictures to PNG files and grids. Imports teachers, method and the ground."""
