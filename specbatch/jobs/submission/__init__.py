"""A whole job through Ray Jobs: handed over here, driven on the cluster, followed from here."""
