# SPDX-License-Identifier: MIT
table = tables.'/rotary.tsv'
title = 'Rotary: the pair (1, 0) becomes (cos, sin); head_dim = 64'
names = '"base = 10000, n_dims = all" "base = 500000, n_dims = all" "n_dims = 32, spectrum = head_dim" "n_dims = 32, spectrum = n_dims"'
tokens = 128
features = 32
feature = 'pair'
value = 'cos of the angle'
set cbrange [-1:1]
load 'examples/gallery/features.gnuplot'
