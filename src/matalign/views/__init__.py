"""What a material looks like to a tower: graphs and micrographs."""
