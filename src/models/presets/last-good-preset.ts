import type { Preset, PresetSection } from './preset-file.js';

/**
 * What counts after a presets file has changed from `previous` to `next`: a section with problems keeps the values
 * of its last good form, if it had one, and says in `stale` what is wrong with the new text; `[*]` likewise. All
 * else is as in `next`: a section that it does not have is gone, and a mended one has lost its mark.
 */
export function keepLastGood(previous: Preset, next: Preset): Preset {
  const good = new Map(
    previous.sections
      .filter(({ problems }) => problems.length === 0)
      .map((section) => [section.name, section]),
  );
  const sections = next.sections.map((section): PresetSection => {
    const kept = good.get(section.name);
    if (section.problems.length === 0 || kept === undefined) return section;
    return { ...section, values: kept.values, problems: [], stale: section.problems.join('; ') };
  });
  // A file without [*] gives nothing to all models, which is a good form, too.
  const keepsGlobal = next.globalProblems.length > 0 && previous.globalProblems.length === 0;
  if (!keepsGlobal) return { ...next, sections };
  const globalStale = next.globalProblems.join('; ');
  return {
    ...next,
    sections,
    global: previous.global,
    globalProblems: [],
    globalStale,
    warnings: [...next.warnings, `the last good form of [*] is used: ${globalStale}`],
  };
}

/** Whether all that `previous` held is gone from the file: then it is being written rather than meant. */
export function isEmptied(previous: Preset, bytes: Uint8Array): boolean {
  return bytes.length === 0 && (previous.sections.length > 0 || previous.global.size > 0);
}

/** What counts when the file can not be read any more: all of `previous`, with `message` as what is wrong. */
export function unreadablePreset(previous: Preset, message: string): Preset {
  return {
    ...previous,
    sections: previous.sections.map((section) => ({ ...section, stale: message })),
    globalStale: message,
    warnings: [message],
  };
}
