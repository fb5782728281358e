"""How good poses are: errors of single poses, and which objects count as found."""
