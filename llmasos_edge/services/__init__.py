"""Services keep house: models on disk, the journal, who may do what, and how the machine is."""
