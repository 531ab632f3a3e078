"""What single model families need beyond the generic path, as data: one small file each."""
