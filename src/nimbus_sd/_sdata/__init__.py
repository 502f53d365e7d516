"""The only floor that touches SpatialData and AnnData objects: resolve, read, write."""
