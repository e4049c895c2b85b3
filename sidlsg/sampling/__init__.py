"""From prompts and seeds to pictures, PNG files and grids. Imports teachers, method and errors."""
