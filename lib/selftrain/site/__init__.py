"""A static site from what is stored: figures, executed notebooks and a sample browser. It runs no notebook and loads no model."""
