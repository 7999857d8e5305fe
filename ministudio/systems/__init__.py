"""How the parts train together: what is rendered, guided and lost."""
