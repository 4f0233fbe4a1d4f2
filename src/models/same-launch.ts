import type { Option, OptionValues } from '../config/option-table.js';
import type { Model } from './model.js';

/**
 * Whether a child that was started for `a` is what would be started for `b`: the same options and the same files.
 * What does not reach the child's work does not count (aliases, tags, preset-only keys), nor does a file that is
 * known of only one: the child itself may have downloaded it.
 */
export function sameLaunch(a: Model, b: Model): boolean {
  const sameFiles = a.version === undefined || b.version === undefined || a.version === b.version;
  return sameFiles && sameValues(a.options, b.options);
}

function sameValues(a: OptionValues, b: OptionValues): boolean {
  return covers(a, b) && covers(b, a);
}

function covers(a: OptionValues, b: OptionValues): boolean {
  for (const [option, text] of b) if (reachesChild(option) && a.get(option) !== text) return false;
  return true;
}

function reachesChild({ presetOnly, key }: Option): boolean {
  return !presetOnly && key !== 'tags';
}
