"""Find and download recordings from the sources that a labels table names: folders, web servers and S3 buckets."""
