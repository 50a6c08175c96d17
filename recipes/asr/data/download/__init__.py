"""Files from elsewhere: fetched over HTTP, checked, unpacked. Knows nothing of corpora."""
