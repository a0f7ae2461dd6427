# SPDX-License-Identifier: MIT
table = tables.'/dynamic_position_bias.tsv'
title = 'DynamicPositionBias: dim = 32, depth = 2, divide = 64'
above = 'at init'
below = 'trained on windows of 64 characters; dashed: 64 tokens away'
limits = '0.6 20'
trained = 64
load 'examples/gallery/heads.gnuplot'
