# SPDX-License-Identifier: MIT
table = tables.'/transformer_xl.tsv'
title = 'TransformerXL: dim = 64, linear_bias = false; queries without content (q = 0)'
above = 'at init'
below = 'trained on windows of 64 characters; dashed: 64 tokens away'
limits = '0.2 14'
trained = 64
load 'examples/gallery/heads.gnuplot'
