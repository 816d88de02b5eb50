"""Local files and S3 behind one protocol: create-once objects, pinned inputs, part files, the stored plan."""
