# Foresight: each stage is a script, each gate a decision. `make help` lists what there is.

MODEL ?= tiny
MODELS ?= tiny tiny-semantic tiny-llava-next tiny-internvl2 tiny-cogvlm2 tiny-dinov2
DATA ?= shapes
SEED ?= 0
COMPARED := $(if $(filter screen,$(MAKECMDGOALS)),$(MODELS))

# make gate2 MODEL=dinov2-l+qwen2.5-vl-7b: the first is the hybrid's spatial encoder, the second the model
ifneq ($(and $(findstring +,$(MODEL)),$(filter gate2,$(MAKECMDGOALS))),)
ENCODER := $(firstword $(subst +, ,$(MODEL)))
override MODEL := $(lastword $(subst +, ,$(MODEL)))
endif
# is it one of this project's small models, or a folder of what became of one?
SMALL := $(foreach m,$(or $(firstword $(COMPARED)),$(MODEL)),$(or $(filter tiny%,$(m)),$(shell grep -s '^weights: small' $(m)/weights.yaml)))
VAE ?= $(if $(SMALL),tiny-vae,ltx)
ENCODER ?= $(if $(SMALL),tiny-dinov2,dinov2-l)
VIDEO ?= $(if $(SMALL),tiny-ltx,ltx-video)
LM ?= $(if $(SMALL),tiny-words,tinyllama)
ROOT ?=
ANNOTATIONS ?=
FORMAT ?= voc
FRAMES ?= $(shell echo $$(($(PAST) + $(HORIZON))))
FPS ?=
CLIPSIZE ?=
N ?=
PAST ?= $(if $(SMALL),8,9)
HORIZON ?= 16
LAUNCH ?=
STRICT ?=
SET ?=
POINTS ?= quarters
MEMORY ?=
TARGET ?=
FROZEN ?= first middle
REPOSITORY ?=

# PY=python uses the environment one is in (Kaggle); otherwise .venv is made once, with the exact versions of requirements.txt.
ifeq ($(origin PY),undefined)
PY := .venv/bin/python
SETUP := .venv/.installed
endif
RUN := $(if $(LAUNCH),$(LAUNCH),$(PY))

# what common.py's folder_name calls a folder: by its last name; <model>/<data>/tuned/adapter and .../model, of tune.py train, <model>-<data>-tuned
whole = $(patsubst %/adapter,%,$(patsubst %/model,%,$(abspath $(1))))
above = $(patsubst %/,%,$(dir $(1)))
called = $(if $(filter %/tuned,$(whole)),$(notdir $(call above,$(call above,$(whole))))-$(notdir $(call above,$(whole)))-)$(notdir $(whole))
M := $(call called,$(MODEL))
R := results/$(M)/$(DATA)
MOTION := results/$(M)/moving
V := results/$(notdir $(VAE))/$(DATA)
E := results/$(notdir $(ENCODER))/$(DATA)
CLIP := $(if $(filter shapes,$(DATA)),future,$(DATA))
P := results/$(M)/$(CLIP)
S := $(foreach m,$(COMPARED),results/$(call called,$(m))/$(DATA))

# what probe.py imports
READERS := common.py stats.py metrics.py media.py

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help gate1 gate2 gate3 gate4 all report table align screen resolution frames binding explain tune plan demo kaggle test test-fast bench bench-gpu calibrate lint tiny clean FORCE

help:  ## this list, with the defaults in force
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  MODEL=$(MODEL) MODELS=\"$(MODELS)\" DATA=$(DATA) SEED=$(SEED) VAE=$(VAE) ENCODER=$(ENCODER) VIDEO=$(VIDEO) LM=$(LM) POINTS=$(POINTS) MEMORY=$(MEMORY) TARGET=$(TARGET) FROZEN=\"$(FROZEN)\" LAUNCH=$(LAUNCH) STRICT=$(STRICT) SET=$(SET)"
	@echo "  own pictures with boxes: DATA=name ROOT=folder FORMAT=voc|csv|coco ANNOTATIONS=file-or-folder"
	@echo "  own pictures or videos with words (LLaVA, Qwen, CLIP, webdataset, metadata.jsonl): DATA=name ROOT=file-or-folder FORMAT=sets"
	@echo "  own clips with labels: DATA=name ROOT=folder FORMAT=clips ANNOTATIONS=file; Something-Something v2: DATA=ssv2 ROOT=folder; FRAMES=$(FRAMES) FPS=$(FPS) CLIPSIZE=$(CLIPSIZE) N=$(N) PAST=$(PAST) HORIZON=$(HORIZON)"
	@echo "  N=40 FROZEN= without ROOT: so many generated pictures and clips, to see in a few minutes that it runs"

# ---- set-up, once

.venv/.installed: requirements.txt
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# ---- data. Scripts are order-only here and for extraction: what they wrote is costly, and is not thrown away for an edit.

ifneq ($(and $(ROOT),$(filter-out operations,$(DATA))),)
CLIPS := $(if $(filter ssv2,$(DATA)),ssv2,$(filter clips,$(FORMAT)))
data/$(DATA)/index.yaml: | data.py $(SETUP)
	$(PY) data.py $(if $(CLIPS),$(CLIPS) --frames $(FRAMES) $(if $(FPS),--fps $(FPS)) $(if $(CLIPSIZE),--size $(CLIPSIZE)),$(FORMAT)) --root $(ROOT) \
		$(if $(ANNOTATIONS),--annotations $(ANNOTATIONS)) $(if $(N),--n $(N)) --out $(@D) --seed $(SEED) --preview
endif
data/moving-first/index.yaml data/moving-middle/index.yaml: data/moving-%/index.yaml: data/moving/index.yaml | data.py $(SETUP)
	$(PY) data.py moving --freeze $* --clips $(<D) --out $(@D) --seed $(SEED) --preview
data/trajectories-reversed/index.yaml data/trajectories-deleted/index.yaml data/trajectories-swapped/index.yaml: data/trajectories-%/index.yaml: | data.py $(SETUP)
	$(PY) data.py trajectories --change $* --only test $(if $(ROOT),,$(if $(N),--n $(N))) --out $(@D) --seed $(SEED) --preview
data/trajectories-8/index.yaml: data/trajectories/index.yaml | data.py $(SETUP)  # the same questions about eight frames of each clip: what a vision-language model is taught
	$(PY) data.py cut --clips $(<D) --evenly --frames 8 --out $(@D) --seed $(SEED)
data/future/index.yaml: | data.py $(SETUP)
	$(PY) data.py moving --frames $(FRAMES) --n $(or $(if $(ROOT),,$(N)),300) --out $(@D) --seed $(SEED) --preview
data/waiting/index.yaml: | data.py $(SETUP)
	$(PY) data.py moving --wait 47 --n $(or $(if $(ROOT),,$(N)),400) --out $(@D) --seed $(SEED) --preview
data/%-past/index.yaml: data/%/index.yaml data/.past | data.py $(SETUP)  # the first PAST frames of every clip, and the last of those: who is given them has not seen what is to be predicted
	$(PY) data.py cut --clips $(<D) --first 0 --frames $(PAST) --out $(@D) --seed $(SEED)
data/operations-raw/made.yaml: | operations.py $(SETUP)
	$(PY) operations.py draw --out $(@D) --seed 42
data/operations/index.yaml: $(if $(ROOT),,data/operations-raw/made.yaml) | operations.py $(SETUP)  # OpenPack as published under ROOT, or a made-up set in its layout
	$(PY) operations.py read --root $(or $(ROOT),data/operations-raw) $(if $(N),--n $(N)) --out $(@D) --seed 42 --preview
data/.past: FORCE  # changes only when PAST or HORIZON does
	@mkdir -p $(@D); echo '$(PAST) $(HORIZON)' | cmp -s - $@ || echo '$(PAST) $(HORIZON)' > $@
data/%-last/index.yaml: data/%/index.yaml data/.past | data.py $(SETUP)
	$(PY) data.py cut --clips $(<D) --first $$(($(PAST) - 1)) --frames 1 --out $(@D) --seed $(SEED)
data/%/index.yaml: | data.py $(SETUP)
	$(PY) data.py $* $(if $(ROOT),,$(if $(N),--n $(N))) --out $(@D) --seed $(SEED) --preview

# ---- features: results/<model>/<data>/features, and the same network untrained

define FEATURES
results/$(call called,$(1))/$(2)/features/index.yaml: data/$(2)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(1) --data data/$(2) --points $(3) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --out $$(@D)
results/$(call called,$(1))/$(2)/features-random/index.yaml: data/$(2)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(1) --data data/$(2) --points $(3) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --random-init --out $$(@D)
endef
$(foreach m,$(sort $(MODEL) $(COMPARED) $(VAE) $(ENCODER) $(TARGET)),$(foreach d,$(sort $(DATA) moving $(FROZEN:%=moving-%) $(CLIP)-past $(CLIP)-last),$(eval $(call FEATURES,$(m),$(d),$(if $(filter $(m),$(MODEL) $(COMPARED)),$(POINTS),quarters)))))  # POINTS are the models' own

# ---- stages

results/%/moving/probe.yaml: results/%/moving/features/index.yaml results/%/moving/features-random/index.yaml $(foreach f,$(FROZEN),results/%/moving-$(f)/features/index.yaml) probe.py $(READERS)
	$(PY) probe.py --features results/$*/moving/features --random results/$*/moving/features-random \
		$(if $(FROZEN),--frozen $(foreach f,$(FROZEN),results/$*/moving-$(f)/features)) --seed $(SEED) --out $@

results/%/probe.yaml: results/%/features/index.yaml results/%/features-random/index.yaml probe.py $(READERS)
	$(PY) probe.py --features results/$*/features --random results/$*/features-random --seed $(SEED) --out $@

results/%/$(DATA)/probe.yaml: results/%/$(DATA)/features/index.yaml results/%/$(DATA)/features-random/index.yaml $(V)/features/index.yaml probe.py $(READERS)
	$(PY) probe.py --features $(@D)/features --random $(@D)/features-random $(if $(filter moving,$(DATA)),,--oracle $(V)/features) --seed $(SEED) --out $@

results/%/$(DATA)/align.yaml: results/%/$(DATA)/features/index.yaml results/%/$(DATA)/features-random/index.yaml $(V)/features/index.yaml align.py common.py stats.py
	$(PY) align.py --features $(@D)/features --random $(@D)/features-random --target $(V)/features --study $(patsubst %/,%,$(dir $(@D)))/alignment-study.md --seed $(SEED) --out $@

results/%/$(DATA)/adapt-latents.yaml: results/%/$(DATA)/align.yaml adapt.py common.py
	$(PY) adapt.py latents --features $(@D)/features --random $(@D)/features-random --latents $(V)/features --align $< --vae $(VAE) --judge $(ENCODER) --seed $(SEED) --out $@

# ---- alignment with TARGET's every point instead of the decoder's latents

ifneq ($(TARGET),)
$(R)/align-$(notdir $(TARGET)).yaml: $(R)/features/index.yaml $(R)/features-random/index.yaml results/$(notdir $(TARGET))/$(DATA)/features/index.yaml align.py common.py stats.py
	$(PY) align.py --features $(R)/features --random $(R)/features-random --target results/$(notdir $(TARGET))/$(DATA)/features --seed $(SEED) --out $@
endif

align: $(R)/align$(if $(TARGET),-$(notdir $(TARGET))).yaml  ## where MODEL and the decoder's latents, or another TARGET=model, are alike: align.yaml, align.png, alignment-study.md
	@sed '/^criteria:/,$$d' $<

# ---- what resolution does (tiles of LLaVA-NeXT: a SIZES entry of twice or three times the tower's own)

SIZES ?= $(if $(SMALL),64 96 144,224 336 448)

$(R)@%/features/index.yaml: data/$(DATA)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(MODEL) --data data/$(DATA) --points $(POINTS) --size $* $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --out $(@D)
$(R)@%/features-random/index.yaml: data/$(DATA)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(MODEL) --data data/$(DATA) --points $(POINTS) --size $* $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --random-init --out $(@D)
$(R)-resolution.yaml: $(foreach s,$(SIZES),$(R)@$(s)/probe.yaml) probe.py $(READERS)
	$(PY) probe.py --compare $(foreach s,$(SIZES),$(R)@$(s)) --seed $(SEED) --out $@
resolution: $(R)-resolution.yaml  ## probes at the SIZES in pixels, paired item by item with the first: results/<model>/<data>-resolution.yaml

# ---- which frames of a clip are shown

COUNT ?= 8
W := results/$(M)/$(if $(filter shapes,$(DATA)),waiting,$(DATA))

results/$(M)/%/frames-$(COUNT).yaml: data/%/index.yaml explain.py common.py
	$(PY) explain.py frames --model $(MODEL) --data $(<D) --frames motion,uniform,random,scene --count $(COUNT) --seed $(SEED) --out $(@:.yaml=.pt)
frames: $(W)/frames-$(COUNT).yaml  ## which COUNT frames of a clip answer best: by what moves, even, random or by shots; by default of clips that wait
	@sed '/^ways:/,$$d' $<

# What the model says of what can be read. Answers are costly, like features: they are not thrown away for an edit of the script, but for other features.
$(R)/answers.pt: data/$(DATA)/index.yaml | explain.py $(SETUP)
	$(PY) explain.py ask --model $(MODEL) --data data/$(DATA) --seed $(SEED) --out $@
$(R)/binding.yaml: $(R)/answers.pt $(R)/features/index.yaml explain.py common.py
	$(PY) explain.py binding --features $(R)/features --answers $< --seed $(SEED) --out $@ > /dev/null

binding: $(R)/binding.yaml  ## what can be read of place (DATA=moving: of motion), and what the model says
	@sed '/^kinds:/,$$d' $<

# What a tracker sees of the objects of trajectories, and of the same scenes changed. Costly, like features.
TRACKER ?= tiny-tracker
results/$(M)/%/tracks.pt: data/%/index.yaml | track.py $(SETUP)
	$(PY) track.py --model $(TRACKER) --data data/$* --seed $(SEED) --out $@

# What a language model says of objects that come, go and hide, of whom it is given a video model's embedding. WORDS: more flags, such as --seeds 5; SEES: a VLM that is shown the frames; TUNED: one
# that was taught the questions, `make tune DATA=trajectories-8`

SEES ?= $(MODEL)
TUNED ?=
WORDS ?= $(if $(filter tiny%,$(notdir $(LM))),,--lr 2e-4)
results/%/trajectories/words/tune-words.yaml: results/%/trajectories/tracks.pt data/trajectories/index.yaml tune.py common.py
	$(RUN) tune.py words --embeddings $< --data data/trajectories --language $(LM) --seed $(SEED) $(WORDS) --out $(@D)
CHANGES := reversed deleted swapped
results/%/trajectories/explain-trajectories.yaml: results/%/trajectories/words/tune-words.yaml $(if $(TUNED),$(wildcard $(TUNED)/*.safetensors)) $(foreach c,$(CHANGES),results/%/trajectories-$(c)/tracks.pt) explain.py common.py
	$(PY) explain.py trajectories --data data/trajectories --embeddings results/$*/trajectories/tracks.pt --words $(<D) --language $(LM) $(if $(SEES),--vlm $(SEES)) $(if $(TUNED),--tuned $(TUNED)) \
		--changed $(foreach c,$(CHANGES),$(c)=data/trajectories-$(c):results/$*/trajectories-$(c)/tracks.pt) --seed $(SEED) --out $@ > /dev/null

explain: results/$(M)/trajectories/explain-trajectories.yaml  ## is what a language model says of objects that come, go and hide true? LM=the language model, SEES=a VLM beside it, TUNED=one taught by make tune DATA=trajectories-8
	@sed '/^[a-z_]*:$$/,$$d' $(<D)/track.yaml
	@sed '/^[a-z_]*:$$/,$$d' $<

# ---- fine-tuning on one's own pictures and clips. The words of the small model are trained whole, what sees stays as it is; TUNE says how else, LoRA by default

LESSONS := $(if $(filter shapes,$(DATA)),operations,$(DATA))
TUNE ?= $(if $(filter tiny,$(M)),--method full --lr 1e-3 --batch 8 --epochs 6)
LEARNED := results/$(M)/$(LESSONS)/tuned
$(LEARNED)/tune.yaml: data/$(LESSONS)/index.yaml data/shapes/index.yaml tune.py common.py
	$(RUN) tune.py train --model $(MODEL) --data $(<D) --keep data/shapes --seed $(SEED) $(TUNE) --out $(@D) > /dev/null
results/$(M)/operations/operations.yaml: $(LEARNED)/tune.yaml operations.py common.py
	$(PY) operations.py score --data data/operations --models $(MODEL) $(<D)/$(if $(filter full,$(TUNE)),model,adapter) $(if $(SMALL),--batch 64) --seed $(SEED) --out $@ > /dev/null

tune: $(LEARNED)/tune.yaml $(if $(filter operations,$(LESSONS)),results/$(M)/operations/operations.yaml)  ## MODEL learns DATA's questions and answers (by default: what is done at a packing bench); scores beside its own before, and beside who sees nothing
	@for f in $^; do sed '/^[a-z_]*:$$/,$$d' $$f; done

# ---- gates

$(R)/gate1.yaml: $(R)/probe.yaml $(MOTION)/probe.yaml $(R)/align.yaml $(R)/adapt-latents.yaml $(E)/probe.yaml gate.py stats.py common.py $(R)/.set
	$(PY) gate.py judge 1 --results $(R) --motion $(MOTION) --encoder $(E) $(if $(wildcard results/qwen2.5-vl-7b/$(DATA)),--reference results/qwen2.5-vl-7b/$(DATA)) \
		--set "$(SET)" --seed $(SEED) --out $@ > /dev/null

$(R)/.set: FORCE  # changes only when SET does, so that a new threshold judges again and computes nothing
	@mkdir -p $(@D); echo '$(SET)' | cmp -s - $@ || echo '$(SET)' > $@

gate1: $(R)/gate1.yaml  ## do the latents suffice? every stage for MODEL on DATA, then the verdict
	@$(PY) gate.py show $< $(if $(STRICT),--strict)

# ---- gate 2. Both encoders in one run, so that what the second one costs is measured; small bridges of the small models learn faster than at the plan's 1e-4

GATE2 ?= $(if $(SMALL),--lr 2e-3)
LADDER ?= $(if $(SMALL),--warm 8 --epochs 3)
ARMS ?= $(if $(SMALL),--loss latents --warm 4 --epochs 4)
FILMS ?= $(if $(SMALL),--seeds 2 --strengths 0.5)
H := results/$(notdir $(ENCODER))+$(M)/$(DATA)/features
OTHER := $(filter-out $(if $(SMALL),96,448),$(SIZES))  # sizes beside the model's own
PICTURES = --latents $(V)/features --align $(R)/align.yaml --vae $(VAE) --judge $(ENCODER) --seed $(SEED) $(GATE2)

$(H)/index.yaml: data/$(DATA)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(ENCODER)+$(MODEL) --data data/$(DATA) --points $(POINTS) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --out $(@D)
$(R)/adapt-scaling.yaml: $(R)/align.yaml adapt.py common.py
	$(RUN) adapt.py scaling --features $(R)/features $(PICTURES) $(LADDER) --out $@
$(R)/adapt-ablation.yaml: $(R)/align.yaml $(foreach s,$(OTHER),$(R)@$(s)/features/index.yaml) adapt.py common.py
	$(RUN) adapt.py ablation --features $(R)/features $(PICTURES) $(ARMS) --at $(foreach s,$(OTHER),$(R)@$(s)/features) --out $@
$(R)/adapt-hybrid.yaml: $(R)/align.yaml $(H)/index.yaml adapt.py common.py
	$(RUN) adapt.py hybrid --features $(H)/$(M) --spatial $(H)/$(notdir $(ENCODER)) --random $(R)/features-random $(PICTURES) $(ARMS) --out $@

$(MOTION)/adapt-prompt.yaml: $(MOTION)/features/index.yaml adapt.py common.py
	$(RUN) adapt.py prompt --features $(MOTION)/features --video $(VIDEO) --seed $(SEED) $(GATE2) --out $@
$(MOTION)/video-coherence.yaml: $(MOTION)/adapt-prompt.yaml video.py common.py
	$(PY) video.py coherence --model $(VIDEO) --data data/moving --judge $(ENCODER) --adapter $(@D)/conditioning-prompt.pt --seed $(SEED) $(FILMS) --out $@
$(MOTION)/films/answers.pt: $(MOTION)/video-coherence.yaml | explain.py
	$(PY) explain.py ask --model $(MODEL) --data $(@D) --seed $(SEED) --out $@
$(MOTION)/explain-semantic.yaml: $(MOTION)/films/answers.pt explain.py common.py
	$(PY) explain.py semantic --films $(<D) --answers $< --seed $(SEED) --out $@

$(R)/gate2.yaml: $(R)/adapt-scaling.yaml $(R)/adapt-ablation.yaml $(R)/adapt-hybrid.yaml $(MOTION)/video-coherence.yaml $(MOTION)/explain-semantic.yaml gate.py stats.py common.py $(R)/.set
	$(PY) gate.py judge 2 --results $(R) --motion $(MOTION) --set "$(SET)" --seed $(SEED) --out $@ > /dev/null

gate2: $(R)/gate2.yaml  ## can a small adapter bridge, does a second encoder repair, does the decoder still move naturally?
	@$(PY) gate.py show $< $(if $(STRICT),--strict)

# ---- gate 3, on clips: DATA, or data/future

WATCHED ?= 3,8,16
PREDICT ?= $(if $(SMALL),--epochs 30)
CONTINUE ?=
FUTURES ?=

$(P)/predict-latents.yaml: $(P)-past/features/index.yaml $(P)-last/features/index.yaml $(P)-past/features-random/index.yaml predict.py common.py
	$(RUN) predict.py --data data/$(CLIP) --features $(P)-past/features --last $(P)-last/features --random $(P)-past/features-random --vae $(VAE) --past $(PAST) --seed $(SEED) $(PREDICT) --out $@
$(P)/video-continue.yaml: data/$(CLIP)/index.yaml data/.past video.py common.py
	$(PY) video.py continue --model $(VIDEO) --data data/$(CLIP) --judge $(ENCODER) --past $(PAST) --horizon $(HORIZON) --seed $(SEED) $(CONTINUE) --out $@
$(P)/video-futures.yaml: data/$(CLIP)/index.yaml data/.past video.py common.py
	$(PY) video.py futures --model $(VIDEO) --data data/$(CLIP) --judge $(ENCODER) --past $(PAST) --horizon $(HORIZON) --seed $(SEED) $(FUTURES) --out $@
$(P)/explain-describe.yaml: $(P)/video-continue.yaml explain.py common.py
	$(PY) explain.py describe --model $(MODEL) --films $(@D)/films --frames $(WATCHED) --seed $(SEED) --out $@
$(P)/gate3.yaml: $(P)/predict-latents.yaml $(P)/video-continue.yaml $(P)/video-futures.yaml $(P)/explain-describe.yaml gate.py stats.py common.py $(P)/.set
	$(PY) gate.py judge 3 --results $(@D) --set "$(SET)" --seed $(SEED) --out $@ > /dev/null
ifneq ($(P),$(R))
$(P)/.set: FORCE
	@mkdir -p $(@D); echo '$(SET)' | cmp -s - $@ || echo '$(SET)' > $@
endif

gate3: $(P)/gate3.yaml  ## does anything predict better than copying the last frame? in latent space; or by a video model that the model then describes
	@$(PY) gate.py show $< $(if $(STRICT),--strict)

# ---- gate 4. What is planted lies beside the films that the video model made, and both go through whoever is to tell right from wrong

ifneq ($(filter tiny tiny-semantic,$(MODEL)),)
JUDGED ?= vision.3,merger,language.1
endif
JUDGED ?= quarters
T := $(P)/planted

$(T)/index.yaml: $(P)/video-continue.yaml | verify.py $(SETUP)
	$(PY) verify.py plant --data data/$(CLIP) --vae $(VAE) --past $(PAST) --horizon $(HORIZON) --films $(P)/films --seed $(SEED) --out $(@D)
	rm -rf $(T)-features
define JUDGE
$(T)-features/$(call called,$(1))/index.yaml: $(T)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(1) --data $(T) --points $(2) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --out $$(@D)
endef
$(eval $(call JUDGE,$(MODEL),$(JUDGED)))
$(eval $(call JUDGE,$(ENCODER),last))
$(eval $(call JUDGE,$(VAE),quarters))
JUDGES := $(foreach m,$(MODEL) $(ENCODER) $(VAE),$(T)-features/$(call called,$(m)))
$(P)/explain-planted.yaml: $(T)/index.yaml explain.py common.py
	$(PY) explain.py describe --model $(MODEL) --films $(T) --frames 16 --seed $(SEED) --out $@
$(P)/verify.yaml: $(JUDGES:=/index.yaml) $(P)/explain-planted.yaml $(P)/video-futures.yaml verify.py common.py
	$(PY) verify.py score --rollouts $(T) --latents $(JUDGES) --words $(P)/explain-planted-said.pt --futures $(P)/video-futures.yaml --seed $(SEED) --out $@
$(P)/gate4.yaml: $(P)/verify.yaml gate.py stats.py common.py $(P)/.set
	$(PY) gate.py judge 4 --results $(@D) --set "$(SET)" --seed $(SEED) --out $@ > /dev/null

gate4: $(P)/gate4.yaml  ## can a prediction be verified in its pixels, better than in latents or in words?
	@$(PY) gate.py show $< $(if $(STRICT),--strict)

all: gate1 gate2 gate3 gate4  ## gates 1 to 4 for MODEL, and then the report
	@$(MAKE) --no-print-directory report

# ---- what there is, for a person: these read YAML and PNG, and no stage runs for them

report: $(SETUP)  ## one page of all results: results/report.html, which opens from disk, and results/summary.md
	$(PY) report.py --results results --out results/report.html
table: $(SETUP)  ## a line for every verdict: model, data, gate, scores
	@$(PY) gate.py table results

# ---- screening. The encoder that judges pictures, if it is among MODELS, stands there for the hybrid: it is probed and needs no bridge of its own.

results/screen/screen.yaml: $(S:=/probe.yaml) gate.py stats.py common.py results/screen/.asked
	$(PY) gate.py screen $(S) --set "$(SET)" --seed $(SEED) --out $(@D) > /dev/null

results/screen/.asked: FORCE  # changes only when the models, the data or SET do
	@mkdir -p $(@D); echo '$(S) $(SET)' | cmp -s - $@ || echo '$(S) $(SET)' > $@

screen: results/screen/screen.yaml  ## which of MODELS? features and probes of each on DATA, then the comparison: results/screen/
	@$(PY) gate.py show $< $(if $(STRICT),--strict)

# ---- live: a photograph, its film, and what is said of both

results/demo/coffee.png: | $(SETUP)
	mkdir -p $(@D)
	$(PY) -c "from PIL import Image; from skimage import data; Image.fromarray(data.coffee()).save('$@')"
demo: results/demo/coffee.png  ## a photograph of scikit-image: what MODEL says it is, a film that begins with it, and what MODEL says of that: results/demo/
	$(PY) explain.py ask --model $(MODEL) --image $< --question "What is in the picture?" --seed $(SEED) --out results/demo/picture.yaml
	$(PY) video.py animate --model $(VIDEO) --image $< --prompt "the red circle moves right" --seed $(SEED) --video results/demo/coffee.mp4
	$(PY) explain.py ask --model $(MODEL) --clip results/demo/coffee.mp4 --question "Which way does the red circle move?" --seed $(SEED) --out results/demo/film.yaml
	@echo; echo "results/demo/: coffee.png, coffee.mp4, coffee.gif; picture.yaml, coffee.yaml and film.yaml say how they were made"
	@$(if $(SMALL),echo "$(MODEL) and $(VIDEO) know drawn shapes alone and have never seen a photograph: this shows that it runs; your own: MODEL=qwen2.5-vl-3b VIDEO=ltx-video")

kaggle: results/foresight.ipynb  ## all scripts as one notebook that installs what is lacking and runs a gate: results/foresight.ipynb
results/foresight.ipynb: $(filter-out tiny.py,$(wildcard *.py)) Makefile requirements.txt tests/notebook.py | $(SETUP)
	$(PY) tests/notebook.py --repository "$(REPOSITORY)" --out $@

# ---- the embedded default

data/tiny-shapes/index.yaml: | data.py $(SETUP)
	$(PY) data.py shapes --size 96 --n 12000 --seed 1001 --out $(@D)
data/tiny-moving/index.yaml: | data.py $(SETUP)
	$(PY) data.py moving --n 3000 --seed 1001 --out $(@D)
data/tiny-trajectories/index.yaml: | data.py $(SETUP)
	$(PY) data.py trajectories --n 10000 --seed 1001 --out $(@D)

tiny: data/tiny-shapes/index.yaml data/tiny-moving/index.yaml data/tiny-trajectories/index.yaml  ## train the embedded default again from nothing (three hours on 2 cores; resumes)
	$(PY) tiny.py --seed $(SEED)

# ---- tuning a model on one's own pictures and clips

plan: $(SETUP)  ## what tuning needs of memory, part by part, and whether a T4, an A100 or this machine holds it: MODEL=one, else all; PLAN= more flags
	$(PY) tune.py plan $(if $(filter command,$(firstword $(origin MODEL))),--models $(MODEL)) $(if $(MEMORY),--max-memory $(MEMORY)) $(PLAN)

# ---- checks

PYTEST = $(PY) -m pytest -q -n 2 --dist loadfile tests

test: $(SETUP)  ## set up, then every test, two files at a time
	$(PYTEST)
test-fast: $(SETUP)  ## the tests of at most five seconds each
	$(PYTEST) -m "not slow"
bench: $(SETUP)  ## speed as ratios against named peers, all in one run: results/bench.yaml
	$(PY) tests/bench.py
bench-gpu: $(SETUP)  ## the same on a CUDA device with networks of full size: results/bench-gpu.yaml (needs 64 GB of disk)
	$(PY) tests/bench_gpu.py
calibrate: $(SETUP)  ## how often gate 1 itself is wrong, on planted worlds: results/calibrate.yaml and .png (about 10 minutes)
	$(PY) tests/calibrate.py
lint: $(SETUP)  ## ruff
	$(PY) -m ruff check .
clean:  ## remove data/ and results that are not part of the repository
	rm -rf data $(filter-out results/tiny results/bench.yaml results/bench-gpu.yaml results/calibrate.yaml results/calibrate.png results/report.png,$(wildcard results/*)) $(filter-out results/tiny/checkpoints,$(filter-out %.yaml,$(wildcard results/tiny/*)))
FORCE:
