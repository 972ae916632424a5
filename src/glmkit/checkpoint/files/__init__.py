"""Single files of named tensors: mapped readers that run nothing, streaming writers."""
