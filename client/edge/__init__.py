"""The anonymizer as a gRPC service at the site: several cameras, one network, nothing raw on the way back."""
