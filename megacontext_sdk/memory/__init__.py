"""The memory itself: level arithmetic, the tree, its journal and directory, the lexical index."""
