# Nothing: the module is there for its file.
